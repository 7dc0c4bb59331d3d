# Who may do what: five accounts, none of which has a key, each with what it needs and no more.

locals {
  accounts = {
    training    = "Training machines: read data and images, write runs, start their successor, delete themselves"
    serving     = "The service and its jobs: reach the database, write metrics"
    deploying   = "The workflow that deploys: push images, make revisions, distribute traffic"
    scheduler   = "The schedule: start two jobs"
    kill-switch = "Takes the billing account away from the project"
  }
  rights = { # Of an account in the whole project
    serving-database  = { account = "serving", role = "roles/cloudsql.client" }
    serving-metrics   = { account = "serving", role = "roles/monitoring.metricWriter" }
    deploying-service = { account = "deploying", role = "roles/run.developer" }
    deploying-figures = { account = "deploying", role = "roles/monitoring.viewer" }
    deploying-public  = { account = "deploying", role = google_project_iam_custom_role.public.name }
    scheduler-jobs    = { account = "scheduler", role = "roles/run.invoker" }
    kill-switch       = { account = "kill-switch", role = "roles/billing.projectManager" }
  }
  team_roles = [ # Start and stop machines, the same as custom jobs of Vertex AI, and read what those say
    "roles/compute.instanceAdmin.v1", "roles/aiplatform.user", "roles/logging.viewer",
  ]
}

resource "google_service_account" "all" {
  for_each     = local.accounts
  account_id   = "card-classifier-${each.key}"
  display_name = each.value
}

resource "google_project_iam_member" "rights" {
  for_each = local.rights
  project  = var.project
  role     = each.value.role
  member   = google_service_account.all[each.value.account].member
}

resource "google_project_iam_custom_role" "public" { # Only for invokerIamDisabled in service.yaml
  role_id     = "cardClassifierPublic"
  title       = "Lets everybody ask a service of Cloud Run"
  permissions = ["run.services.setIamPolicy"]
}

# --- Training

resource "google_storage_bucket_iam_member" "training" {
  bucket = google_storage_bucket.all["runs"].name
  role   = "roles/storage.objectUser"
  member = google_service_account.all["training"].member
}

resource "google_artifact_registry_repository_iam_member" "training" {
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.all["training"].member
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
  member  = google_service_account.all["training"].member
  condition { # Other machines of the project are none of its business
    title      = "only its own kind"
    expression = "resource.type != 'compute.googleapis.com/Instance' || resource.name.extract('instances/{name}').startsWith('card-classifier-')"
  }
}

resource "google_service_account_iam_member" "successor" { # The successor runs as the same account
  service_account_id = google_service_account.all["training"].name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.all["training"].member
}

resource "google_service_account_iam_member" "team" { # Who starts a training may let a machine be this account
  for_each           = toset(var.team)
  service_account_id = google_service_account.all["training"].name
  role               = "roles/iam.serviceAccountUser"
  member             = each.value
}

resource "google_project_iam_member" "team" {
  for_each = { for one in setproduct(var.team, local.team_roles) : "${one[0]} ${one[1]}" => one }
  project  = var.project
  role     = each.value[1]
  member   = each.value[0]
}

# --- The service

resource "google_storage_bucket_iam_member" "drift" {
  bucket = google_storage_bucket.all["drift"].name
  role   = "roles/storage.objectUser"
  member = google_service_account.all["serving"].member
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
  service_account_id = google_service_account.all["deploying"].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "principalSet://iam.googleapis.com/${google_iam_workload_identity_pool.github.name}/attribute.repository/${var.repository}"
}

resource "google_artifact_registry_repository_iam_member" "deploying" {
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.all["deploying"].member
}

resource "google_service_account_iam_member" "deploying" { # A revision runs as the service's account
  service_account_id = google_service_account.all["serving"].name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.all["deploying"].member
}
