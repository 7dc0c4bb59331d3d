# A budget that tells everybody at half, nine tenths and all of it, and a switch that takes the billing account away from
# the project at one and a half times: everything then stops, also what somebody forgot. Data in buckets is kept by
# Google for a while; the service is gone until a person links the account again.

resource "google_pubsub_topic" "budget" {
  name       = "card-classifier-budget"
  depends_on = [google_project_service.apis]
}

resource "google_billing_budget" "month" {
  billing_account = var.billing_account
  display_name    = "card-classifier"
  budget_filter {
    projects               = ["projects/${data.google_project.this.number}"]
    credit_types_treatment = "EXCLUDE_ALL_CREDITS"
  }
  amount {
    specified_amount {
      units = tostring(var.budget)
    }
  }
  dynamic "threshold_rules" {
    for_each = [0.5, 0.9, 1.0, 1.5]
    content {
      threshold_percent = threshold_rules.value
    }
  }
  all_updates_rule {
    pubsub_topic   = google_pubsub_topic.budget.id
    schema_version = "1.0"
  }
}

data "archive_file" "kill_switch" {
  type        = "zip"
  source_dir  = "${path.module}/../kill_switch"
  output_path = "${path.module}/kill_switch.zip"
}

resource "google_storage_bucket_object" "kill_switch" {
  name   = "kill_switch/${data.archive_file.kill_switch.output_md5}.zip"
  bucket = google_storage_bucket.all["drift"].name
  source = data.archive_file.kill_switch.output_path
}

resource "google_cloudfunctions2_function" "kill_switch" {
  name     = "card-classifier-kill-switch"
  location = var.region
  build_config {
    runtime     = "python312"
    entry_point = "hear_budget"
    source {
      storage_source {
        bucket = google_storage_bucket.all["drift"].name
        object = google_storage_bucket_object.kill_switch.name
      }
    }
  }
  service_config {
    available_memory      = "256M"
    max_instance_count    = 1
    service_account_email = google_service_account.all["kill-switch"].email
    ingress_settings      = "ALLOW_INTERNAL_ONLY"
    environment_variables = {
      PROJECT = var.project
      RATIO   = "1.5"
    }
  }
}

resource "google_cloud_run_service_iam_member" "kill_switch" {
  service  = google_cloudfunctions2_function.kill_switch.name
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.all["kill-switch"].member
}

resource "google_pubsub_subscription" "budget" {
  name                 = "card-classifier-kill-switch"
  topic                = google_pubsub_topic.budget.id
  ack_deadline_seconds = 60
  push_config {
    push_endpoint = google_cloudfunctions2_function.kill_switch.url
    oidc_token {
      service_account_email = google_service_account.all["kill-switch"].email
    }
  }
}
