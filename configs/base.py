"""Every knob once. The other files here are small changes of this one.

A value of None means: what the model preset, the data or the paper says. Override on the command
    line, for instance
`--config.optimizer.name=adamw "--config.curriculum[0].steps=200"`; a misspelt name is answered with
the nearest one.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(variant: str = "") -> ConfigDict:
    """The paper's model on the embedded shapes; not a run by itself (see quickstart.py,
    stage1.py)."""
    if variant:
        raise ValueError(f"base.py has no variant {variant!r}.")
    config = ConfigDict()
    config.seed = 0  # of parameters, data order and all draws
    # a run, one of its checkpoints/STEP or a converted model: its averaged parameters (and its
    config.init_from = ""
    # tokenizer, where none is named below), with a new optimizer, at step 0

    # The model: a preset, and what differs from it.
    config.model = ConfigDict()
    config.model.preset = "videomar_1p4b"  # videomar_1p4b | quickstart | tiny
    config.model.latent_channels = placeholder(int)  # latent channels; must equal the tokenizer's
    config.model.patch_size = placeholder(int)  # latent pixels per token side
    config.model.width = placeholder(int)
    config.model.depth = placeholder(int)
    config.model.num_heads = placeholder(int)
    config.model.mlp_ratio = placeholder(int)
    config.model.rope_split = placeholder(tuple)  # head channels for (frame, row, column)
    config.model.rope_base = placeholder(float)
    config.model.rope_frame_origin = placeholder(str)  # absolute | restart
    config.model.qk_norm_gain = placeholder(float)  # initial gain of query and key norms
    config.model.gate_init = placeholder(float)  # initial residual gates
    config.model.text_tokens = placeholder(int)  # text length; must equal the text encoder's
    config.model.text_width = placeholder(int)  # text feature width; must equal the text encoder's
    config.model.text_mask = placeholder(bool)  # hide padded text
    config.model.null_text_mask = placeholder(str)  # prompt | ones
    config.model.pooled_text = placeholder(bool)  # mean text vector added to every token
    config.model.head = placeholder(str)  # ddpm | flow
    config.model.head_width = placeholder(int)
    config.model.head_depth = placeholder(int)
    config.model.head_zero_init = placeholder(bool)
    config.model.flow_time = placeholder(str)  # uniform | logit_normal
    config.model.regression = placeholder(bool)  # linear read-out of z, for loss.regression_weight
    config.model.history_levels = placeholder(
        bool
    )  # tell the model the noise level of earlier frames
    config.model.dtype = placeholder(str)  # float32 | bfloat16, of matrix products
    config.model.remat = placeholder(str)  # none | full | dots
    config.model.unroll = placeholder(int)  # layers per turn of the layer loop
    config.model.attention = placeholder(str)  # auto | xla | cudnn

    # Clips
    config.data = ConfigDict()
    config.data.kind = (
        "shapes"  # shapes (drawn on demand) | videos (a folder) | shards (prepared clips) | tfds
    )
    config.data.path = (
        ""  # videos, shards: the folder; tfds: the dataset's name, or the folder of a prepared one
    )
    config.data.captions = ""  # videos: a captions.csv or .jsonl elsewhere; "" looks in the folder
    config.data.fps = (
        12.0  # videos: frames per second that clips are resampled to; tfds: that they have
    )
    config.data.holdout = (
        0.2  # videos: last share of each clip that training never sees, or of the clips where they
    )
    # are too short to be cut; tfds: of the split
    config.data.split = "train"  # tfds: the split to train on
    config.data.held_out = ""  # tfds: the split to measure on; "": the last `holdout` of the other
    config.data.video_key = (
        "video"  # tfds: the feature that holds the frames, "a/b" for nested ones
    )
    config.data.caption_key = "caption"  # tfds: the feature that holds text or a class; "" for none
    config.data.data_dir = ""  # tfds: where datasets lie; "": where TFDS looks by itself
    config.data.length = 100_000  # shapes: distinct training clips
    config.data.threads = 2  # reader threads

    # Video to latents
    config.tokenizer = ConfigDict()
    config.tokenizer.kind = (
        "pca"  # pca (fitted on the training clips) | cosmos; shards come with their own
    )
    config.tokenizer.path = (
        ""  # cosmos: file, folder or Hugging Face repo id, or RELEASE@ one of these
    )
    config.tokenizer.scale = 0.5  # cosmos: factor on its latents (VideoMAR's)
    config.tokenizer.patch = 4  # pca, as all that follows: spatial stride
    config.tokenizer.temporal_stride = 2
    config.tokenizer.channels = 16
    config.tokenizer.patches = "plain"  # plain | haar
    config.tokenizer.whitening = 0.5  # 0 plain PCA scale … 1 unit variance in every channel
    config.tokenizer.fit_clips = 400

    # Captions to features
    config.text = ConfigDict()
    config.text.kind = "hashed"  # hashed (needs no download) | qwen2
    config.text.path = ""  # qwen2: folder or Hugging Face repo id
    config.text.system_text_file = ""  # qwen2: a text that stands in front of every caption
    config.text.padding_side = "right"  # qwen2: right | left
    config.text.tokens = 8  # length that captions are padded or cut to
    config.text.width = 64  # hashed: values of a token

    # The objective (paper, section 3.2)
    config.loss = ConfigDict()
    config.loss.supervise = "one_frame"  # one random next frame per clip | all_frames at once
    config.loss.truncate = False  # one_frame: cut clips after the supervised frame
    config.loss.normaliser = "all_masked"  # all_masked, as published | supervised
    config.loss.mask_rate_min = 0.7
    config.loss.text_dropout = 0.1
    config.loss.draws_per_token = 4  # diffusion batch multiplier
    config.loss.history_noise = (
        0.0  # largest share of noise in the earlier frames; goes with model.history_levels
    )
    config.loss.regression_weight = 0.0

    # The update rule; learning rates stand in the curriculum
    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw | muon
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.95
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.02
    config.optimizer.clip_norm = 3.0
    config.optimizer.adam_ratio = 0.2  # muon: learning rate of what Adam updates, over the stage's
    config.optimizer.warmup_steps = 100
    config.optimizer.schedule = "constant"  # constant | cosine over all stages
    config.optimizer.final_fraction = 0.0
    config.optimizer.ema_decay = 0.9999
    config.optimizer.ema_warmup = False

    # Rows: name, num_frames, height, width, batch_size, steps, learning_rate; or for batches of
    # several shapes
    # name, mix, steps, learning_rate, the mix of entries num_frames, sizes (or height, width),
    # batch_size, weight
    config.curriculum = ()

    # Devices along each axis of the mesh; -1 takes the rest
    config.mesh = ConfigDict()
    config.mesh.data = -1  # copies of the parameters, each with its share of the batch
    config.mesh.fsdp = 1  # parts of the parameters, each with its share of the batch
    config.mesh.tensor = 1  # parts of a layer
    config.mesh.context = 1  # parts of a frame's tokens
    config.mesh.min_size = 2**14  # smaller parameters are copied to every device

    # Around the steps
    config.run = ConfigDict()
    config.run.accumulate = 1  # parts a batch is worked on in, one after the other
    config.run.lookahead = True  # reads and encodes the next batch while the device works
    config.run.log_every = 10
    config.run.checkpoint_every = 100  # and at every stage's end
    config.run.keep_checkpoints = 2
    config.run.keep_every = 0  # checkpoints of steps divisible by it stay for good; 0: none
    config.run.validate_every = 0  # loss on held-out clips; the best checkpoint stays too; 0: never
    config.run.validation_clips = 64
    config.run.sample_every = 0  # strips of generated clips; 0: at every stage's end only
    config.run.progress_seconds = 15.0  # between two lines of progress
    config.run.tensorboard = True

    # How videos are drawn, in training and by default afterwards (paper, section 3.3)
    config.sampling = ConfigDict()
    config.sampling.steps = 64  # reveal steps of a frame
    config.sampling.head_steps = (
        "100"  # diffusion steps of the head; "A-B" goes from A to B as tokens appear
    )
    config.sampling.head_solver = "euler"  # euler | heun, of the flow head
    config.sampling.guidance = 3.0
    config.sampling.guidance_schedule = "linear"  # linear | constant
    config.sampling.guidance_interval = (
        0.0,
        1.0,
    )  # share of the reveal steps, from and to, that are guided
    config.sampling.temperature = 1.0
    config.sampling.temperature_law = "constant"  # constant | paper | linear
    config.sampling.latent_clip = 2.0  # largest latent value; 0: tokens are left as drawn
    config.sampling.clip_first = False
    config.sampling.token_dtype = "float32"  # float32 | bfloat16, which drawn tokens are rounded to
    config.sampling.dtype = (
        "model"  # model | float32 | bfloat16, of the transformer's matrix products
    )
    config.sampling.head_dtype = "float32"  # model | float32 | bfloat16, of the head's
    config.sampling.window = placeholder(int)  # finished frames that are kept and seen; None: all
    config.sampling.keep_first = True  # with a window: frame 0 stays
    config.sampling.first_frame_position = "shifted"  # absolute | shifted, of a frame 0 that stays
    config.sampling.spatial_rope_scaling = (
        "none"  # none | interpolate | ntk, rows and columns beyond the trained grid
    )
    config.sampling.temporal_rope_scaling = (
        "none"  # none | interpolate | ntk, frames beyond the trained length
    )

    # What is measured at the end
    config.evaluation = ConfigDict()
    config.evaluation.clips = 64  # held-out clips
    config.evaluation.batch_size = 16
    return config
