//! The endpoint: from requests to decisions, tools and answers.
