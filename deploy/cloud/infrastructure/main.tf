# Everything that the project needs in Google Cloud, once: OpenTofu and Terraform both take these files.
#   tofu init -backend-config="bucket=YOUR-STATE-BUCKET" && tofu apply
# Names of projects and accounts are variables; no file here holds one, and no key is ever made.

terraform {
  required_version = ">= 1.6"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.0"
    }
    archive = {
      source  = "hashicorp/archive"
      version = "~> 2.4"
    }
  }
  backend "gcs" {
    prefix = "card-classifier"
  }
}

provider "google" {
  project               = var.project
  region                = var.region
  billing_project       = var.project
  user_project_override = true
}

data "google_project" "this" {}

locals {
  bucket = "${var.project}-card-classifier"
  apis = [
    "aiplatform", "artifactregistry", "billingbudgets", "cloudbilling", "cloudbuild", "cloudfunctions",
    "cloudresourcemanager", "cloudscheduler", "compute", "iam", "iamcredentials", "monitoring", "pubsub", "run",
    "secretmanager", "serviceusage", "sqladmin", "sts",
  ]
}

resource "google_project_service" "apis" {
  for_each           = toset(local.apis)
  service            = "${each.value}.googleapis.com"
  disable_on_destroy = false
}
