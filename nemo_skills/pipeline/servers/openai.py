"""Any server with OpenAI's API that runs already, given by its address."""

from nemo_skills.pipeline.servers.base import ServerSpec

SPEC = ServerSpec(name="openai", hosted=False, ready_path="/v1/models")
