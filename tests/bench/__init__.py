"""The benchmark: StellarChat beside other relays, on one machine, in one run (`python -m tests.bench`)."""
