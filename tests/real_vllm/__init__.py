"""Run by hand against a real vLLM: STELLARCHAT_LIVE_URL=http://127.0.0.1:8100 python -m pytest tests/real_vllm

It must serve with `--enable-auto-tool-choice` and a tool-call parser.
"""
