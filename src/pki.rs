//! Certificates: the authority, its leaves, and when they are renewed. Pure: time and keys are arguments.
