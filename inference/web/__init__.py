"""The page of `audiollm demo-web`: what a visitor is, what is drawn of a recording, and the Gradio page itself."""
