"""Private names of other packages that cotrunk uses, because there is no public counterpart.

`tests/pipelines/test_class_tables.py` checks that the installed versions still have them, and that cotrunk uses no
others.
"""

# the module that defines or sets the names -> the names
INTERNALS = {
    "torch.nn.modules.module": (
        "_compiled_call_impl",  # how a module is called: `engine/patch.py`
        "_call_impl",
        "_forward_hooks",  # what changes its inputs and outputs: `trunks/pipeline_state.py`
        "_forward_pre_hooks",
    ),
    "diffusers.hooks.hooks": ("_diffusers_hook", "_is_stateful", "_fn_refs", "_state_cache"),  # caches and their state
    "diffusers.pipelines.pipeline_utils": (
        "_progress_bar_config",  # the user's settings of progress bars
        "_execution_device",  # where an offloaded pipeline computes
    ),
    "diffusers.configuration_utils": (
        "_class_name",  # the class that a configuration belongs to
        "_internal_dict",  # a configuration: `trunks/pipeline_state.py`
    ),
    "diffusers.models.attention_processor": ("_attention_backend",),  # how an attention layer computes
    "diffusers.schedulers.scheduling_flow_match_euler_discrete": ("_shift",),  # set by `set_shift`
    "diffusers.pipelines.flux.pipeline_flux": ("_interrupt", "_num_timesteps", "_pack_latents", "_unpack_latents"),
    "diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha": (
        "_text_preprocessing",
    ),  # lower-cases and cleans prompts
    "accelerate.hooks": ("_old_forward",),  # the forward below an offloading hook
    "peft.tuners.tuners_utils": ("_active_adapter", "_disable_adapters"),  # which LoRAs a layer adds
    "accelerate.accelerator": ("_original_forward", "_is_accelerate_prepared"),  # set on a model by `prepare`
    "datasets.arrow_dataset": ("_fingerprint",),  # identifies a data set
    "datasets.features.features": ("_type",),  # the kind of a column, in the metadata of a Parquet file
    "fsspec.asyn": ("_find",),  # whether a file system lists all files itself: `storage/files.py`
    "os": ("_exit",),  # ends a process whose device is broken: `cluster/painter.py`
    "efficientnet_lite_pytorch.model": ("_blocks", "_bn0", "_bn1", "_conv_head", "_conv_stem", "_swish"),  # features
    "cache_dit": ("_is_cached",),  # set on pipelines and denoisers by `enable_cache`
}
