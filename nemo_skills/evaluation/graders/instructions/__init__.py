"""The 25 kinds of instructions of the IFEval format; each check takes the response and the arguments."""

from collections.abc import Callable, Mapping

from nemo_skills.evaluation.graders.instructions import content, form, language, length

CHECKS: Mapping[str, Callable[..., bool]] = {
    "keywords:existence": content.has_keywords,
    "keywords:frequency": content.keyword_frequency,
    "keywords:forbidden_words": content.avoids_words,
    "keywords:letter_frequency": content.letter_frequency,
    "language:response_language": language.is_in,
    "length_constraints:number_sentences": length.sentences,
    "length_constraints:number_paragraphs": length.paragraphs,
    "length_constraints:number_words": length.words,
    "length_constraints:nth_paragraph_first_word": length.first_word_of_paragraph,
    "detectable_content:number_placeholders": content.placeholders,
    "detectable_content:postscript": content.has_postscript,
    "detectable_format:number_bullet_lists": form.bullets,
    "detectable_format:constrained_response": form.is_one_of_three,
    "detectable_format:number_highlighted_sections": form.highlights,
    "detectable_format:multiple_sections": form.sections,
    "detectable_format:json_format": form.is_json,
    "detectable_format:title": form.has_title,
    "combination:two_responses": form.two_responses,
    "combination:repeat_prompt": form.repeats,
    "startend:end_checker": form.ends_with,
    "startend:quotation": form.is_quoted,
    "change_case:capital_word_frequency": content.capital_words,
    "change_case:english_capital": language.english_capitals,
    "change_case:english_lowercase": language.english_small_letters,
    "punctuation:no_comma": content.no_comma,
}
