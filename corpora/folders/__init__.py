"""Folders of audio with transcripts, in the usual shapes."""
