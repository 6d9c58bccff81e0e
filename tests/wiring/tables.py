"""Two tables: what each settings field can be seen to do, and what Lightning would do in silence.

`cut.py` proves the first by cutting each wire; the second is proved by the named tests. Both are rendered
into `docs/wiring.md`.
"""

from __future__ import annotations

from typing import NamedTuple

FACADE = "tests/exec/trainer/test_build.py::"
CALLBACKS = "tests/exec/trainer/test_callbacks.py::"
LOGGERS = "tests/exec/trainer/test_loggers.py::"
PLAN = "tests/exec/test_plan.py::"
KNOBS = "tests/wiring/test_knobs.py::"
SILENT_TESTS = "tests/wiring/test_silent.py::"
WORKFLOWS = "tests/torch/test_workflows_components.py::"


class Wire(NamedTuple):
    """A field, what its value can be seen to do, and the tests that see it: each goes red without it."""

    field: str
    observed: str
    tests: tuple[str, ...]


WIRES: tuple[Wire, ...] = (
    Wire(
        "accelerator",
        "the device that holds the weights, on a machine with a GPU too",
        (KNOBS + "test_the_cpu_computes_when_asked_also_beside_a_gpu",),
    ),
    Wire(
        "devices",
        "the number of processes that train, each leaving a file",
        (KNOBS + "test_devices_is_the_number_of_processes_that_train",),
    ),
    Wire(
        "num_nodes",
        "the world size of the Trainer under a launcher with two nodes",
        (KNOBS + "test_num_nodes_makes_the_world_larger",),
    ),
    Wire(
        "strategy",
        "what the module is wrapped in during fit",
        (KNOBS + "test_strategy_wraps_the_module_as_asked",),
    ),
    Wire(
        "precision",
        "dtype of the network's output in a forward hook",
        (
            KNOBS + "test_precision_is_the_dtype_of_the_network[bf16-mixed-dtype1]",
            FACADE + "test_precision_is_the_dtype_of_the_forward_pass[64-true-dtype3]",
        ),
    ),
    Wire(
        "matmul_precision",
        "torch's matrix product precision inside a training step",
        (FACADE + "test_matmul_precision_and_threads_act_inside_fit",),
    ),
    Wire(
        "compile",
        "whether the network's call is compiled in fit",
        (KNOBS + "test_compile_reaches_the_network[True]",),
    ),
    Wire(
        "num_threads",
        "torch's number of threads inside a training step",
        (KNOBS + "test_num_threads_acts_inside_fit",),
    ),
    Wire(
        "deterministic",
        "torch's flag inside a training step, also in the warning form",
        (
            FACADE + "test_deterministic_is_what_the_process_really_has[False]",
            FACADE + "test_deterministic_is_what_the_process_really_has[warn]",
        ),
    ),
    Wire("benchmark", "cuDNN's flag inside fit", (KNOBS + "test_benchmark_reaches_cudnn",)),
    Wire("seed", "trained weights differ between seeds", (FACADE + "test_seed_changes_the_weights",)),
    Wire(
        "batch_size",
        "length of the batches that arrive in the training step",
        (
            FACADE + "test_batch_size_is_the_length_of_a_batch[3]",
            WORKFLOWS + "TestRealTrainer::test_accelerator_strategy_batch_size_and_workers",
        ),
    ),
    Wire(
        "accum_steps",
        "optimizer steps per epoch; the accumulated gradient is that of one large batch",
        (
            WORKFLOWS + "TestRealTrainer::test_accumulation_makes_fewer_steps",
            KNOBS + "test_accumulated_gradients_are_those_of_one_large_batch",
        ),
    ),
    Wire(
        "learning_rate",
        "rate of every optimizer step",
        (KNOBS + "test_the_rate_of_every_step_follows_the_formula[Default]",),
    ),
    Wire(
        "scheduler",
        "rate of every optimizer step against the schedule's formula",
        (
            KNOBS + "test_the_rate_of_every_step_follows_the_formula[Exponential]",
            KNOBS + "test_the_rate_of_every_step_follows_the_formula[WarmupCosine]",
            KNOBS + "test_the_rate_of_every_step_follows_the_formula[MultiStage]",
            KNOBS + "test_the_rate_follows_the_monitored_metric[max-val_loss-ReduceLROnPlateau-plateau]",
            KNOBS + "test_the_rate_follows_the_monitored_metric[min-train_loss-Adaptive-bold_driver]",
        ),
    ),
    Wire(
        "gradient_clip_val",
        "gradients before and after clipping",
        (
            KNOBS + "test_clipping_by_norm_scales_all_gradients_alike",
            FACADE + "test_clipping_limits_the_gradient[norm-<lambda>]",
        ),
    ),
    Wire(
        "gradient_clip_algorithm",
        "clipped gradients against the formula of the paper",
        (
            KNOBS + "test_the_clipped_gradient_is_that_of_the_paper[value-1e-06]",
            KNOBS + "test_the_clipped_gradient_is_that_of_the_paper[agc-0.001]",
        ),
    ),
    Wire("max_time", "epochs trained", (KNOBS + "test_max_time_stops_before_the_last_epoch",)),
    Wire(
        "limit_train_batches",
        "batches of an epoch",
        (
            FACADE + "test_limit_train_batches[2-2]",
            FACADE + "test_limit_train_batches[0.5-3]",
        ),
    ),
    Wire(
        "fast_dev_run",
        "batches trained, and that nothing is written",
        (FACADE + "test_fast_dev_run_trains_that_many_batches_and_writes_nothing",),
    ),
    Wire(
        "early_stop_patience",
        "epochs trained with a scripted metric",
        (
            CALLBACKS + "test_early_stopping[True-1-min-3]",
            CALLBACKS + "test_early_stopping[False-1-min-3]",
        ),
    ),
    Wire(
        "num_workers",
        "processes that load the samples",
        (
            WORKFLOWS + "TestRealTrainer::test_accelerator_strategy_batch_size_and_workers",
            KNOBS + "test_persistent_workers_live_through_all_epochs[True]",
        ),
    ),
    Wire(
        "pin_memory",
        "a loader for a machine with a GPU",
        (KNOBS + "test_pinning_is_off_where_a_gpu_would_turn_it_on",),
    ),
    Wire(
        "persistent_workers",
        "process numbers of the workers over three epochs",
        (KNOBS + "test_persistent_workers_live_through_all_epochs[True]",),
    ),
    Wire(
        "prefetch_factor",
        "samples loaded before they are asked for",
        (KNOBS + "test_prefetch_factor_is_the_number_of_batches_loaded_ahead",),
    ),
    Wire(
        "enable_checkpointing",
        "files in `checkpoints/`",
        (CALLBACKS + "test_no_checkpoints_if_so_wished",),
    ),
    Wire(
        "checkpoint_save_top_k",
        "files in `checkpoints/` with a scripted metric",
        (
            CALLBACKS + "test_the_best_checkpoints_are_kept[True-3-min-epochs1]",
            CALLBACKS + "test_the_best_checkpoints_are_kept[True--1-min-epochs2]",
            CALLBACKS + "test_the_best_checkpoints_are_kept[False-0-min-epochs3]",
        ),
    ),
    Wire(
        "checkpoint_monitor_metric",
        "metric that ranks checkpoints and drives metric-driven schedules",
        (
            CALLBACKS + "test_the_asked_metric_ranks",
            KNOBS + "test_the_rate_follows_the_monitored_metric[min-train_loss-Adaptive-bold_driver]",
        ),
    ),
    Wire(
        "checkpoint_mode",
        "files in `checkpoints/`, and when training stops early",
        (
            CALLBACKS + "test_the_best_checkpoints_are_kept[True-1-max-epochs4]",
            CALLBACKS + "test_early_stopping[True-1-max-2]",
        ),
    ),
    Wire(
        "enable_progress_bar",
        "what is printed during training and inference",
        (
            CALLBACKS + "test_progress_shows_epoch_metrics_and_remaining_time",
            WORKFLOWS + "test_the_progress_of_training_and_inference_is_shown_when_asked",
        ),
    ),
    Wire("logger_backend", "files in `logs/`", (LOGGERS + "test_none_logs_nothing",)),
    Wire(
        "log_every_n_steps",
        "rows of step metrics in `metrics.csv`",
        (LOGGERS + "test_log_every_n_steps_thins_the_rows",),
    ),
    Wire(
        "log_images_every_n_epochs",
        "pictures beside the metrics, and their steps",
        (
            LOGGERS + "test_csv_gets_metrics_settings_and_pictures",
            WORKFLOWS + "test_pictures_reach_the_logger_and_do_not_change_the_training",
        ),
    ),
    Wire(
        "experiment_name",
        "name of the experiment that the tracking client creates",
        (KNOBS + "test_mlflow_is_told_experiment_and_address[experiment_name]",),
    ),
    Wire(
        "tracking_uri",
        "address that the tracking client is given, and asked whether it answers",
        (
            KNOBS + "test_mlflow_is_told_experiment_and_address[tracking_uri]",
            LOGGERS + "test_a_server_that_does_not_answer_is_an_error_at_once",
        ),
    ),
    Wire(
        "inference_batch_size",
        "length of the batches that arrive in prediction",
        (KNOBS + "test_inference_batches_have_the_asked_size",),
    ),
    Wire(
        "middle_trim",
        "pixels of the object that patches cover",
        (KNOBS + "test_middle_trim_stitches_the_middle_of_each_patch",),
    ),
    Wire(
        "pad_eval",
        "whether patches that overhang the canvas are stitched",
        (KNOBS + "test_pad_eval_keeps_patches_that_overhang_the_canvas",),
    ),
    Wire(
        "on_unsupported",
        "whether a run stops or trains with the nearest value",
        (
            KNOBS + "test_on_unsupported_trains_with_the_nearest_value_or_stops",
            FACADE + "test_16_mixed_adapted_on_a_cpu_is_recorded_and_warns_of_nothing_else",
        ),
    ),
    Wire(
        "drift",
        "whether a run with a Trainer other than asked stops or warns",
        (
            CALLBACKS + "test_a_plateau_on_another_metric_than_asked_is_drift[ReduceLROnPlateau]",
            CALLBACKS + "test_a_plateau_on_another_metric_than_asked_is_drift[Adaptive]",
            FACADE + "test_drift_can_warn_or_be_allowed",
        ),
    ),
)


class Silent(NamedTuple):
    """An input that Lightning ignores, changes or finds late; what becomes of it here; the proof."""

    asked: str
    lightning: str
    here: str
    tests: tuple[str, ...]


REJECTED, STOPPED, NOTICED, FIXED, REPORTED = (
    "rejected with the settings",
    "stopped by the plan, with a remedy",
    "left out with a notice",
    "decided here and passed to every Trainer",
    "reported as drift",
)


def _rejected(*inputs: str) -> tuple[str, ...]:
    return tuple(
        FACADE + f"test_settings_reject_what_lightning_would_take_in_silence[{row}]" for row in inputs
    )


SILENT: tuple[Silent, ...] = (
    Silent(
        'deterministic "yes"',
        "not deterministic, no message",
        REJECTED,
        _rejected("{'deterministic': 'yes'}"),
    ),
    Silent(
        'deterministic "true"',
        "not deterministic, no message",
        REJECTED,
        (
            *_rejected("{'deterministic': 'true'}"),
            FACADE + "test_what_lightning_would_take_for_not_deterministic_is_refused[true]",
        ),
    ),
    Silent(
        "deterministic 1",
        "not deterministic, no message",
        REJECTED,
        (FACADE + "test_what_lightning_would_take_for_not_deterministic_is_refused[1]",),
    ),
    Silent(
        "a second Trainer in the process, deterministic false",
        "inherits deterministic from the first",
        "flags are restored after every run",
        (FACADE + "test_the_next_trainer_inherits_nothing",),
    ),
    Silent(
        "a second Trainer in the process, benchmark not given",
        "inherits benchmark from the first",
        FIXED,
        (SILENT_TESTS + "test_benchmark_of_an_earlier_trainer_does_not_leak",),
    ),
    Silent(
        "CUBLAS_WORKSPACE_CONFIG",
        "stays set after a deterministic run",
        "variables are restored after every run",
        (FACADE + "test_flags_of_the_caller_are_kept", SILENT_TESTS + "test_a_run_leaves_no_variable_behind"),
    ),
    Silent(
        "deterministic with benchmark",
        "a warning; benchmark stays on",
        REJECTED,
        _rejected("{'deterministic': True, 'benchmark': True}"),
    ),
    Silent("precision 16", "bf16-mixed with a warning", REJECTED, _rejected("{'precision': 16}")),
    Silent(
        "precision 16-mixed on a CPU",
        "bf16-mixed with a warning",
        STOPPED,
        (
            FACADE
            + "test_the_plan_stops_what_lightning_finds_late_or_never[asked0-None-silently use bf16-mixed]",
            FACADE + "test_16_mixed_adapted_on_a_cpu_is_recorded_and_warns_of_nothing_else",
        ),
    ),
    Silent(
        "gradient_clip_val 0", "no clipping, no message", REJECTED, _rejected("{'gradient_clip_val': 0.0}")
    ),
    Silent(
        "gradient_clip_val -1", "no clipping, no message", REJECTED, _rejected("{'gradient_clip_val': -1.0}")
    ),
    Silent(
        "gradient_clip_algorithm without a value",
        "ignored",
        REJECTED,
        _rejected("{'gradient_clip_algorithm': 'value'}"),
    ),
    Silent(
        "accumulate_grad_batches 0",
        "ZeroDivisionError inside fit",
        REJECTED,
        _rejected("{'accum_steps': 0}"),
    ),
    Silent("accumulate_grad_batches -1", "accepted", REJECTED, _rejected("{'accum_steps': -1}")),
    Silent(
        "accumulate_grad_batches as a dict",
        "fails in fit",
        REJECTED,
        _rejected("{'accum_steps': {0: 2}}"),
    ),
    Silent(
        "clipping with manual optimization",
        "fails only in fit",
        STOPPED,
        (
            FACADE
            + "test_the_plan_stops_what_lightning_finds_late_or_never[asked2-traits2-manual optimization]",
        ),
    ),
    Silent(
        "accumulation with manual optimization",
        "fails only in fit",
        STOPPED,
        (
            FACADE
            + "test_the_plan_stops_what_lightning_finds_late_or_never[asked3-traits3-manual optimization]",
        ),
    ),
    Silent("devices True", "one device", REJECTED, _rejected("{'devices': True}")),
    Silent(
        "devices 2 on a CPU",
        "DDP with two processes",
        "the plan says so, and the ranks agree on the settings",
        (
            SILENT_TESTS + "test_two_processes_on_a_cpu_are_announced",
            FACADE + "test_two_ranks_train_as_asked",
        ),
    ),
    Silent("devices -1", "TypeError on a CPU", REJECTED, _rejected("{'devices': -1}")),
    Silent(
        "devices [0] on a CPU",
        "TypeError",
        REJECTED,
        _rejected("{'devices': [0], 'accelerator': 'cpu'}"),
    ),
    Silent(
        'devices "0,1"', "TypeError on a CPU", REJECTED, (SILENT_TESTS + "test_devices_as_text_are_rejected",)
    ),
    Silent(
        "num_nodes 2 alone",
        "fit hangs at rendezvous",
        STOPPED,
        (
            FACADE + "test_the_plan_stops_what_lightning_finds_late_or_never[asked1-None-wait for ever]",
            FACADE + "test_what_no_trainer_would_notice_stops_before_it",
        ),
    ),
    Silent(
        "strategy fsdp on a CPU",
        "ValueError",
        "the refusal, with the place the value came from",
        (FACADE + "test_what_a_real_trainer_refuses_says_where_it_came_from[asked2-words2]",),
    ),
    Silent(
        "strategy deepspeed without its package",
        "an install hint",
        "the refusal, with the place the value came from",
        (FACADE + "test_what_a_real_trainer_refuses_says_where_it_came_from[asked3-words3]",),
    ),
    Silent(
        "min_epochs above max_epochs",
        "accepted; trains longer than asked",
        FIXED,
        (SILENT_TESTS + "test_the_length_of_training_cannot_be_changed_from_outside",),
    ),
    Silent(
        "max_steps 0",
        "accepted; trains nothing",
        FIXED,
        (SILENT_TESTS + "test_the_length_of_training_cannot_be_changed_from_outside",),
    ),
    Silent(
        "limit_train_batches 0",
        "accepted; trains nothing",
        REJECTED,
        _rejected("{'limit_train_batches': 0}", "{'limit_train_batches': 0.0}"),
    ),
    Silent(
        "a monitor that is never logged",
        "fails only at the first check; fast_dev_run does not notice",
        "stopped by the plan, or after the first epoch, in a smoke test too",
        (
            FACADE + "test_the_plan_stops_what_lightning_finds_late_or_never[asked4-traits4-never logs it]",
            FACADE + "test_a_monitor_that_is_never_logged_stops_after_the_first_epoch[more0]",
            FACADE + "test_a_monitor_that_is_never_logged_stops_after_the_first_epoch[more1]",
        ),
    ),
    Silent(
        "ModelCheckpoint with enable_checkpointing false",
        "an error",
        "no such callback is built",
        (FACADE + "test_no_callback_is_built_that_lightning_would_refuse",),
    ),
    Silent(
        "LearningRateMonitor without a logger",
        "an error",
        "no such callback is built",
        (FACADE + "test_no_callback_is_built_that_lightning_would_refuse",),
    ),
    Silent(
        "logger true without tensorboard",
        "CSV with a warning",
        "loggers are named; a missing package is an error",
        tuple(
            LOGGERS + f"test_a_missing_package_names_its_extra[{name}]"
            for name in ("tensorboard", "mlflow", "wandb")
        ),
    ),
    Silent(
        "persistent_workers without workers",
        "ValueError in fit, masked by another",
        NOTICED,
        (FACADE + "test_options_of_workers_without_workers_train_with_a_notice",),
    ),
    Silent(
        "prefetch_factor without workers",
        "ValueError in fit, masked by another",
        NOTICED,
        (FACADE + "test_options_of_workers_without_workers_train_with_a_notice",),
    ),
    Silent(
        "timeout without workers",
        "ValueError in fit, masked by another",
        "no such setting; loaders take none",
        (SILENT_TESTS + "test_loaders_take_no_timeout",),
    ),
    Silent(
        "pin_memory on a CPU",
        "a warning",
        NOTICED,
        (FACADE + "test_options_of_workers_without_workers_train_with_a_notice",),
    ),
    Silent(
        "more workers than CPUs",
        "a warning",
        "kept, with a notice",
        (FACADE + "test_more_workers_than_cpus_is_a_notice_and_trains",),
    ),
    Silent(
        "SLURM with two tasks per node, devices 1",
        "two unconnected trainings",
        STOPPED,
        (SILENT_TESTS + "test_slurm_traps_stop_before_the_trainer[two tasks, one device]",),
    ),
    Silent(
        'SLURM_NTASKS_PER_NODE "2(x2)"',
        "int() error",
        STOPPED,
        (SILENT_TESTS + "test_slurm_traps_stop_before_the_trainer[compressed count]",),
    ),
    Silent(
        "a notebook job of SLURM with devices 2",
        "KeyError SLURM_NODEID",
        STOPPED,
        (SILENT_TESTS + "test_slurm_traps_stop_before_the_trainer[no job step]",),
    ),
    Silent(
        "ddp children run the script again",
        "settings are resolved again, perhaps to others",
        "every rank compares its settings with rank zero's",
        (FACADE + "test_ranks_with_different_settings_stop",),
    ),
    Silent(
        "PL_TRAINER_* variables",
        "fill every parameter that is not passed",
        FIXED,
        (
            FACADE + "test_every_parameter_of_the_real_trainer_is_passed",
            FACADE + "test_no_variable_of_lightning_reaches_the_trainer",
            SILENT_TESTS + "test_a_training_beside_odd_variables_is_the_same",
        ),
    ),
    Silent(
        "PL_GLOBAL_SEED",
        "seeds a run that gives no seed",
        "the settings' seed is always given",
        (SILENT_TESTS + "test_a_training_beside_odd_variables_is_the_same",),
    ),
    Silent(
        "a Trainer, loader or flag changed after it was built",
        "nobody looks",
        REPORTED,
        (
            FACADE
            + "test_a_trainer_that_is_not_as_asked_is_drift[gradient_clip_val-5.0-asked0-gradient_clip_val]",
            FACADE + "test_a_process_flag_that_is_not_as_asked_is_drift[deterministic]",
            FACADE + "test_a_loader_that_is_not_as_asked_is_drift[asked0-given0-train.batch_size]",
            FACADE + "test_drift_in_fit_stops_the_run",
        ),
    ),
)
