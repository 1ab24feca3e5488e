"""StellarChat: an OpenAI-compatible reverse proxy that records every chat."""
