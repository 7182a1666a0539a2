"""Google's services over their REST APIs: Secret Manager and Vertex AI. Cloud Storage is in `storage`."""
