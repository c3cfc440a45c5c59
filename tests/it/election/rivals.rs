//! Go candidates and ours in one election.
