"""
The server behind `audiollm serve`: OpenAI's chat completions and transcriptions, from one model that is loaded once.

Why not `transformers serve`, with our classes registered? Tried with transformers 5.23: it answers text, but its chat hands
recordings over as `data:` URLs that only transformers' own loader reads, its transcriptions call the processor as Whisper's
without a prompt, a transcription request may name any model of the Hub, which is then loaded although one is forced, any
client may call `/load_model` and `/reset`, and nothing bounds an upload. Its handlers are no public interface to extend.
"""
