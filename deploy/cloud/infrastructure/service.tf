# What stands around the service: secrets, the database, and the schedule of its jobs. The service itself is deployed by
# card-classifier cloud deploy, from deploy/cloud/service.yaml.

locals {
  secrets = { # And whose account reads it; the values of two are given by a person
    database  = "serving"
    collector = "serving"
    wandb     = "training"
  }
}

resource "google_secret_manager_secret" "all" {
  for_each  = local.secrets
  secret_id = "card-classifier-${each.key}"
  replication {
    auto {}
  }
  depends_on = [google_project_service.apis]
}

resource "google_secret_manager_secret_version" "collector" {
  secret      = google_secret_manager_secret.all["collector"].id
  secret_data = file("${path.module}/../collector.yaml")
}

resource "google_secret_manager_secret_iam_member" "readers" {
  for_each  = local.secrets
  secret_id = google_secret_manager_secret.all[each.key].id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.all[each.value].member
}

resource "google_sql_database_instance" "records" {
  count               = var.has_database ? 1 : 0
  name                = "card-classifier"
  region              = var.region
  database_version    = "POSTGRES_17"
  deletion_protection = true
  settings {
    tier              = "db-f1-micro"
    edition           = "ENTERPRISE"
    disk_size         = 10
    disk_autoresize   = false
    availability_type = "ZONAL"
    backup_configuration {
      enabled                        = true
      point_in_time_recovery_enabled = true
    }
    ip_configuration {
      ipv4_enabled = true # Reached through Cloud Run's connector only: no network is authorised
      ssl_mode     = "ENCRYPTED_ONLY"
    }
  }
}

resource "google_sql_database" "cards" {
  count    = var.has_database ? 1 : 0
  name     = "cards"
  instance = google_sql_database_instance.records[0].name
}
