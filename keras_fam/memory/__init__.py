"""TransformerFAM (arXiv 2404.09173) for one decoder layer, as functions of tensors.

Shape letters used throughout the package:

| letter | meaning |
|---|---|
| b | batch |
| n | blocks of a text |
| B | `block_size`, tokens per block |
| m | `memory_segments`, past blocks that stay visible |
| N | `fam_length`, FAM vectors per layer |
| d | hidden dim |
| h, k | query heads, key/value heads (g = h / k queries share a key) |
| c | head dim |
| t, s | query places, key places |

Where the paper's equations are, here and in the slow reference of the tests (`tests/helpers/reference.py`):

| paper | here | reference |
|---|---|---|
| eq. 1-3, BSWA | `tokens.attend_blocks`, `blocks.token_mask` | `run_layer` |
| Algorithm 2, Q K V = QKV(norm(I)) | `parts.DecoderParts.project_query`, `project_key_value` | `Layer.qkv` |
| Algorithm 2, Qf Kf Vf = QKV(norm(F)) | `feedback.project_fam` | `run_layer` |
| Algorithm 2, A = Attention(Q, [K_mem, Kf, K]) + I | `tokens.attend_blocks` | `run_layer`, "Tokens" |
| Algorithm 2, A^F = Attention(Qf, [Kf, K]) + R | `feedback.update_fam` | `run_layer`, "FAM" |
| Algorithm 2, O = FF(norm(A)) + A, for F too | `parts.DecoderParts.complete` | `Layer.finish` |
| section 2.3, the learned prompt | `layers.prompt.FAMPrompt`, `sequence.lift_prompt` | `lift_prompt` |
| section 3.1, random state passing | `training.state_passing`, `FAMDecoderLayer._begin` | `start=` |
| appendix A, block after block | `streaming.read_piece`, `streaming.advance_layer` | `run_layer` |
| appendix B, places of FAM | `rotary.block_rotations` | `run_layer`, `fam_places` |
| appendix C, gradients through memory | `tokens._recalled`, `truncate_bptt` in `sequence._feedback_loop` | |

Beyond the paper: `feedback.bound_residual` (`memory_span`), `sequence.project_sink` (`sink_token_id`), the gate
(`memory_gate`, a score that is added to Kf), `core.Core.segments` (rings as short as a layer's own window),
`core.Core.fam_parts` (adapters that are FAM's alone).

A layer has two forms with the same results. `sequence` computes a whole text: all tokens at once, and N vectors through
a loop over blocks. `streaming` computes piece after piece against buffers of fixed size.
"""
