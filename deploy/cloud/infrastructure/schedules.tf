# Which job starts when. A job that fails is told by a policy of deploy/cloud/monitoring; the drift job fails on drift.

locals {
  schedules = {
    drift     = "17 * * * *"
    retention = "41 3 * * *"
  }
}

resource "google_cloud_scheduler_job" "jobs" {
  for_each         = local.schedules
  name             = "card-classifier-${each.key}"
  region           = var.region
  schedule         = each.value
  time_zone        = "Etc/UTC"
  attempt_deadline = "180s"
  retry_config {
    retry_count = 1
  }
  http_target {
    http_method = "POST"
    uri         = "https://run.googleapis.com/v2/projects/${var.project}/locations/${var.region}/jobs/card-classifier-${each.key}:run"
    oauth_token {
      service_account_email = google_service_account.all["scheduler"].email
    }
  }
  depends_on = [google_project_service.apis]
}
