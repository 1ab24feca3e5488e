"""The subcommands of `stellarchat` other than `serve`, a module for each subject."""
