"""StellarChat: an OpenAI-compatible reverse proxy that saves every chat that passes through it."""
