# One bucket for runs and versions of the data, one for pages of drift, one repository for images.

locals {
  buckets = { # And what is of no use after ninety days: checkpoints of runs that are over, and pages
    runs  = { name = local.bucket, prefixes = ["runs/"], suffixes = [".safetensors"] }
    drift = { name = "${local.bucket}-drift", prefixes = [], suffixes = [".html"] }
  }
}

resource "google_storage_bucket" "all" {
  for_each                    = local.buckets
  name                        = each.value.name
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  soft_delete_policy {
    retention_duration_seconds = 604800
  }
  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age            = 90
      matches_prefix = each.value.prefixes
      matches_suffix = each.value.suffixes
    }
  }
  depends_on = [google_project_service.apis]
}

resource "google_storage_bucket_iam_member" "team" {
  for_each = toset(var.team)
  bucket   = google_storage_bucket.all["runs"].name
  role     = "roles/storage.objectUser"
  member   = each.value
}

resource "google_artifact_registry_repository" "images" {
  repository_id = "card-classifier"
  location      = var.region
  format        = "DOCKER"
  docker_config {
    immutable_tags = true
  }
  cleanup_policies {
    id     = "keep-the-newest"
    action = "KEEP"
    most_recent_versions {
      keep_count = 10
    }
  }
  cleanup_policies {
    id     = "remove-old-ones"
    action = "DELETE"
    condition {
      older_than = "2592000s"
    }
  }
  depends_on = [google_project_service.apis]
}
