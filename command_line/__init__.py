"""The `audiollm` command, and what all commands share: options, files, signals, downloads, the embedded bases, the machine."""
