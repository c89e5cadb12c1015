"""What a Whisper hears in clips, and how far transcripts are from it."""
