# Who may do what: four accounts, none of which has a key, each with what it needs and no more.

resource "google_service_account" "training" {
  account_id   = "card-classifier-training"
  display_name = "Training machines: read data and images, write runs, start their successor, delete themselves"
}

resource "google_service_account" "serving" {
  account_id   = "card-classifier-serving"
  display_name = "The service and its jobs: reach the database, write metrics"
}

resource "google_service_account" "deploying" {
  account_id   = "card-classifier-deploying"
  display_name = "The workflow that deploys: push images, make revisions, distribute traffic"
}

resource "google_service_account" "scheduler" {
  account_id   = "card-classifier-scheduler"
  display_name = "The schedule: start two jobs"
}

# --- Training

resource "google_storage_bucket_iam_member" "training" {
  bucket = google_storage_bucket.runs.name
  role   = "roles/storage.objectUser"
  member = google_service_account.training.member
}

resource "google_artifact_registry_repository_iam_member" "training" {
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.training.member
}

resource "google_project_iam_custom_role" "machine" {
  role_id = "cardClassifierMachine"
  title   = "A training machine that starts its successor and deletes itself"
  permissions = [
    "compute.disks.create", "compute.instances.create", "compute.instances.delete", "compute.instances.get",
    "compute.instances.setLabels", "compute.instances.setMetadata", "compute.instances.setServiceAccount",
    "compute.networks.use", "compute.networks.useExternalIp", "compute.subnetworks.use",
    "compute.subnetworks.useExternalIp", "compute.zoneOperations.get",
  ]
}

resource "google_project_iam_member" "machine" {
  project = var.project
  role    = google_project_iam_custom_role.machine.name
  member  = google_service_account.training.member
  condition { # Other machines of the project are none of its business
    title      = "only its own kind"
    expression = "resource.type != 'compute.googleapis.com/Instance' || resource.name.extract('instances/{name}').startsWith('card-classifier-')"
  }
}

resource "google_service_account_iam_member" "successor" { # The successor runs as the same account
  service_account_id = google_service_account.training.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.training.member
}

resource "google_service_account_iam_member" "team" { # Who starts a training may let a machine be this account
  for_each           = toset(var.team)
  service_account_id = google_service_account.training.name
  role               = "roles/iam.serviceAccountUser"
  member             = each.value
}

resource "google_project_iam_member" "team" {
  for_each = toset(var.team)
  project  = var.project
  role     = "roles/compute.instanceAdmin.v1"
  member   = each.value
}

# --- The service

resource "google_project_iam_member" "serving" {
  for_each = toset(["roles/cloudsql.client", "roles/monitoring.metricWriter"])
  project  = var.project
  role     = each.value
  member   = google_service_account.serving.member
}

resource "google_storage_bucket_iam_member" "drift" {
  bucket = google_storage_bucket.drift.name
  role   = "roles/storage.objectUser"
  member = google_service_account.serving.member
}

# --- Deploying: GitHub's identity instead of a key

resource "google_iam_workload_identity_pool" "github" {
  workload_identity_pool_id = "card-classifier-github"
  depends_on                = [google_project_service.apis]
}

resource "google_iam_workload_identity_pool_provider" "github" {
  workload_identity_pool_id          = google_iam_workload_identity_pool.github.workload_identity_pool_id
  workload_identity_pool_provider_id = "github"
  attribute_mapping = {
    "google.subject"       = "assertion.sub"
    "attribute.repository" = "assertion.repository"
    "attribute.ref"        = "assertion.ref"
  }
  attribute_condition = "assertion.repository == '${var.repository}' && assertion.ref in ['refs/heads/main'] || assertion.repository == '${var.repository}' && assertion.ref.startsWith('refs/tags/')"
  oidc {
    issuer_uri = "https://token.actions.githubusercontent.com"
  }
}

resource "google_service_account_iam_member" "github" {
  service_account_id = google_service_account.deploying.name
  role               = "roles/iam.workloadIdentityUser"
  member             = "principalSet://iam.googleapis.com/${google_iam_workload_identity_pool.github.name}/attribute.repository/${var.repository}"
}

resource "google_artifact_registry_repository_iam_member" "deploying" {
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.deploying.member
}

resource "google_project_iam_member" "deploying" {
  for_each = toset(["roles/run.developer", "roles/monitoring.viewer"])
  project  = var.project
  role     = each.value
  member   = google_service_account.deploying.member
}

resource "google_service_account_iam_member" "deploying" { # A revision runs as the service's account
  service_account_id = google_service_account.serving.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.deploying.member
}
