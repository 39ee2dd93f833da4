"""Programs that run beside a generation main: the server launcher and the stub server."""
