//! Signal models and their training.

pub mod train;
