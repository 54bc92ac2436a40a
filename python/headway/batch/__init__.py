"""The main job: many requests from a file, sent as fast as the limits allow (`headway run`)."""
