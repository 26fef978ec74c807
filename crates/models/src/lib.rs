//! Falcon and Llama, assembled once, generic over the backend
