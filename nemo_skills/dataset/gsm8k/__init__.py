"""Grade-school math word problems (GSM8K)."""
