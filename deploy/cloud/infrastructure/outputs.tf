output "workload_identity_provider" {
  description = "For the variable WORKLOAD_IDENTITY_PROVIDER of the repository on GitHub"
  value       = google_iam_workload_identity_pool_provider.github.name
}

output "deploying_account" {
  description = "For the variable DEPLOY_SERVICE_ACCOUNT of the repository on GitHub"
  value       = google_service_account.all["deploying"].email
}

output "images" {
  description = "For the variable ARTIFACT_REGISTRY of the repository on GitHub"
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "data_remote" {
  description = "For card-classifier data remote"
  value       = "gs://${google_storage_bucket.all["runs"].name}/dvc"
}
