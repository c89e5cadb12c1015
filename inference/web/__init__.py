"""The page of `audiollm demo-web`: Gradio's chat component, pictures of recordings, and a guard of files."""
