"""Command-line tools, run as `python -m keras_fam.tools.NAME`.

- `import_gguf`: a GGUF file of a Gemma 3 or Llama-type model becomes a KerasHub preset.
"""
