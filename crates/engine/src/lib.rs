//! In-flight batching: admission, scheduling, preemption, cancel
