//! Decides: which snapshots to keep, which snapshot a name means.
