//! The shell's behaviour from outside: real listeners, real requests.
