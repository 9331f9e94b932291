"""Tables of the denoiser arguments in diffusers: conditions, masks, lengths, and arguments common to all rows.

`engine/rows.py` folds rows by these tables. To support a new argument of a denoiser, add its name here.
"""

# Arguments that never have one entry per row, even if their length happens to be the number of rows.
SHARED = {"img_ids", "txt_ids", "image_rotary_emb", "rotary_emb", "rotary_embedding", "freqs_cis"}
# Arguments that depend on the prompt: a folded row takes the mean over its members. Everything else with one entry per
# row (latents, timestep, sizes, control residuals) is equal among the members, so the first member represents all.
CONDITIONS = {
    "encoder_hidden_states",
    "encoder_hidden_states_1",
    "encoder_hidden_states_2",
    "encoder_hidden_states_t5",  # HunyuanDiT
    "encoder_hidden_states_llama3",  # HiDream
    "pooled_projections",
    "pooled_embeds",  # HiDream
    "pooled_text_emb",  # aMUSEd
    "text_embeds",
    "class_labels",  # MusicLDM's text embedding
    "audio_encoder_hidden_states",  # LTX-2
    "cap_feats",  # Z-Image: a list with one (tokens, channels) tensor per row
    "text_bth",  # ERNIE-Image
}
# Masks that mark the padding of a condition. A folded row sees every token that any member sees.
MASKS = {
    "encoder_attention_mask": "encoder_hidden_states",
    "encoder_hidden_states_mask": "encoder_hidden_states",
    "encoder_attention_mask_1": "encoder_hidden_states_1",
    "encoder_attention_mask_2": "encoder_hidden_states_2",
    "audio_encoder_attention_mask": "audio_encoder_hidden_states",
    "encoder_mask": "encoder_hidden_states",  # Lumina
    "text_embedding_mask": "encoder_hidden_states",  # HunyuanDiT
    "text_embedding_mask_t5": "encoder_hidden_states_t5",
    "attention_mask": "encoder_hidden_states",  # Chroma: of the text tokens, then of the image's
}
# Plain lists with one entry per row (Z-Image, Qwen-Image); any other list is a container of tensors.
ROW_LISTS = {"x", "cap_feats", "img_shapes", "txt_seq_lens"}
# Tensors whose second dimension has one entry per row: (layers, R, tokens, channels).
ROWS_SECOND = {"encoder_hidden_states_llama3"}
# Numbers of tokens, for conditions without a mask: a folded row is as long as its longest member.
LENGTHS = {"txt_seq_lens": "encoder_hidden_states", "text_lens": "text_bth"}
# Arguments that keep keys and values between calls, or request it.
STATE = {"kv_cache", "kv_caches", "kv_cache_mode"}
