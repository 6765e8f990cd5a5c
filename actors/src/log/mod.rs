//! Where log entries live: the store on disk, and the view of it that the core decides by.

pub mod store;
pub mod view;
