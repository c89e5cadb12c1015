"""LibriSpeech, from OpenSLR's archives or a folder of them."""
