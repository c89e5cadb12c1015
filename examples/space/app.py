"""A Gradio Space that listens: set the variable MODEL to your checkpoint on the Hub."""

import os

import gradio as gr
from transformers import AutoModel, AutoProcessor

MODEL = os.environ.get("MODEL", "you/my-audiollm")
model = AutoModel.from_pretrained(MODEL, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)


def answer(recording: str, question: str) -> str:
    """Answer a question about a recording."""
    content = [{"type": "audio", "path": recording}, {"type": "text", "text": f"\n{question}"}]
    messages = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True).to(model.device)
    output = model.generate(**inputs, max_new_tokens=128)
    return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


demo = gr.Interface(
    answer,
    [gr.Audio(type="filepath", label="Recording"), gr.Textbox("Transcribe the speech.", label="Question")],
    gr.Textbox(label="Answer"),
    title=MODEL,
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
