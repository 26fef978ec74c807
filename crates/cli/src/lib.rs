//! The peregrine command
