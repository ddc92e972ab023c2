"""The stages of a run, whose order is in `reangle_jax.main`.

No stage imports another. They speak through the files of the run's folder, so that each can be redone, resumed, or
called from a notebook alone. The contract of a stage module, ``reangle_jax/stages/NAME.py``::

    def units(settings: Settings) -> tuple[Unit, ...]: ...                   # cheap; no work, no device
    def NAME(settings: Settings, folder: Path, work: Work) -> None:          # folder: the run's
        for unit in work:
            files.atomic_savez(folder / unit.outputs[0], ...)
    STAGE = Stage("NAME", version=1, units=units, run=NAME)

A *unit* is the smallest part of a stage that is kept or redone as a whole: the whole stage (finetune), or one view of
it (generate). It lists all that its result depends on (``Unit`` in ``run/stage.py``, beside what a ``Stage`` may say).
The ledger compares that with run.json, and the stage is called only if some unit is new, changed, missing or damaged.
``for unit in work`` gives these units one after the other: each is judged when its turn comes, so that it may depend on
what the one before has written, and the one before is entered as done, so that a run killed later keeps it. What is
needed for all (networks, prompts) is made before the loop; ``work.todo`` holds all that may be to do. A stage must

1. write whole or not at all: ``data.files.atomic_...``, ``data.pictures.write_png``, ``data.video.write_video``;
2. give results that do not depend on which other units happen to be to do: a view's key is
   ``named_key(settings.seed, "generate", view)``, derived from the seed and the name, never from a counter;
3. raise its version whenever equal settings and inputs begin to give another result; a setting that there was not
   when a run was begun redoes nothing while it is at its default;
4. for work worth saving midway, keep it in ``work.scratch(unit)``: a folder tied to the unit's fingerprint, empty at
   the first try, found again when the same work is resumed, removed when the unit is finished or its fingerprint
   changes. A stage that goes through its units in several passes calls ``work.finish_part(unit)`` after all but the
   last, and ``work.finish(unit)``;
5. stop when asked: a signal raises ``Stopped`` between two bytecodes, which is right for work that is merely thrown
   away. Work worth saving runs inside ``with work.stop.at_safe_points() as stop:`` and asks ``stop.requested`` after
   each step; it then saves to scratch and calls ``stop.now()``, which raises.

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
input/edited.png                          first_warps: another first frame, with edit.caption or first_frames.given
views/NAME/first_warp.png                 first_warps, static: the first frame as seen from there, transparent elsewhere
views/NAME/first_frame.png                first_frames
views/NAME/first_frame.json               first_frames, of what was painted: the share painted over; of each step that
                                          chose its candidates' scores (a column for each picture in compared_with)
                                          and which was kept; MEt3R with these pictures
views/NAME/frames.npz                     generate: frames uint8 [T,H,W,3]
views/NAME/video.mp4                      generate: the same, to look at
views/NAME/untuned.npz                    generate: frames of the untuned model, with evaluate.untuned
lora/losses.json                          finetune: the loss of each step
lora/learning.json                        finetune: that, the norms of gradient and update, and the rate, of each step
metrics.json, grid.mp4                    evaluate
scene.html                                scene, where viser is installed: the points over time and all cameras
report.html                               report: all of it to look at, in one page
run.json                                  the ledger: settings, those ``added`` since it was begun, versions, devices,
                                          the command; of each unit what it was made of, its outputs' hashes, seconds
                                          and peaks of memory
.hashes.json, .scratch/, .lock            hashes of files that are untouched; work in progress; held by the process
========================================  =======================================================================
"""
