"""The stages of a run, in order: ingest, depth, warp_views, finetune, first_frames, generate, evaluate.

No stage imports another. They speak through the files of the run's folder, so that each can be redone, resumed, or
called from a notebook alone. The contract of a stage module, ``reangle_jax/stages/NAME.py``::

    def units(settings: Settings) -> tuple[Unit, ...]: ...   # cheap; no work, no device
    def NAME(settings: Settings, run: Run) -> None: ...      # does every unit in run.todo
    STAGE = Stage("NAME", version=1, units=units, run=NAME)

A *unit* is the smallest part of a stage that is kept or redone as a whole: the whole stage (finetune), or one view of
it (generate). ``Unit(name, settings, inputs, outputs, external, weights, view)`` (``run.py``) lists

- ``settings``: the dotted keys that its result depends on, ``"seed"``, ``"sample.steps"``, or a group, ``"sample"``;
- ``inputs``: paths in the run's folder, written by earlier stages, whose content it depends on (files, or folders);
- ``outputs``: paths in the run's folder, files or folders, that it writes, each whole or not at all;
- ``external``: settings that name a file outside of the run's folder whose content it depends on (``"video"``);
- ``weights``: the parts of the weights that it reads (``"transformer"``, ``"vae"``, ``"text_encoder"``, ``"depth"``).

``run`` compares these with run.json and calls the stage only if some unit is new, changed, missing or damaged;
``run.todo`` then holds exactly those units, and those that may follow. For a unit may depend on what earlier units of
its stage write: ``for unit in run`` judges each when its turn comes, and enters the one before as done. A stage must

1. write through ``run.save_npz / save_json / save_bytes / save_png / save_video / save_folder`` (``data/files.py``
   underneath): temporary neighbour, fsync, rename;
2. call ``run.finish(unit)`` after a unit's last output, which records it at once: a run killed later keeps it. (A
   stage with a single unit may leave that to the caller);
3. give results that do not depend on which other units happen to be in ``run.todo``: a view's key is
   ``run.key("generate", view)``, derived from the seed and the name, never from a counter;
4. raise its version whenever equal settings and inputs begin to give another result;
5. for work worth saving midway, keep it in ``run.scratch(unit)``: a folder tied to the unit's fingerprint, empty at
   the first try, found again when the same work is resumed, removed when the unit is finished or its fingerprint
   changes;
6. stop when asked: a signal raises ``Stopped`` between two bytecodes, which is right for work that is merely thrown
   away. Work worth saving runs inside ``with run.stop_at_safe_points() as stop:`` and asks ``stop.requested`` after
   each step; it then saves to scratch and calls ``stop.now()``, which raises.

Inside of a stage: ``run.path("input/frames.npz")`` and ``run.view_path(view, "warp.npz")`` give absolute paths,
``run.load_npz("input/frames.npz")`` a dict of arrays, ``run.weights("vae")`` the folder of a part's converted weights.

========================================  =======================================================================
file                                      content
========================================  =======================================================================
input/frames.npz                          frames uint8 [T,H,W,3]; fps float64 scalar; of the source: source_indices
                                          int64 [T], source_size int64 [2] (rows, columns), pixel_aspect float64 scalar
input/depth.npz                           depth float32 [T,H,W], z in scene units
input/cameras.json                        the source cameras
views/NAME/cameras.json                   the view's cameras
views/NAME/warp.npz                       frames uint8 [T,H,W,3]; visible bool [T,H,W]
views/NAME/warp.mp4                       the same, to look at
lora/, lora/lora.safetensors              finetune
views/NAME/first_frame.png                first_frames
views/NAME/frames.npz                     generate: frames uint8 [T,H,W,3]
views/NAME/video.mp4                      generate: the same, to look at
views/NAME/untuned.npz                    generate: frames of the untuned model, with evaluate.untuned
metrics.json, grid.mp4                    evaluate
========================================  =======================================================================
"""
