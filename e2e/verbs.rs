//! The verbs for people: make, hash and judge keys, look into tokens, ask an endpoint who one is.
