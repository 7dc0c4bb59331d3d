variable "project" {
  description = "Id of the project"
  type        = string
}

variable "region" {
  description = "Region of the bucket, the images and the service; as cloud.region"
  type        = string
  default     = "europe-west4"
}

variable "billing_account" {
  description = "Id of the billing account that pays"
  type        = string
}

variable "budget" {
  description = "What a month may cost, in the currency of the billing account; as cloud.budget"
  type        = number
  default     = 50
}

variable "repository" {
  description = "Repository on GitHub whose workflows may push images and deploy, as OWNER/NAME"
  type        = string
}

variable "team" {
  description = "Who may read and write data and runs, such as [\"user:somebody@example.org\", \"group:team@example.org\"]"
  type        = list(string)
  default     = []
}

variable "has_database" {
  description = "Whether records are kept in Cloud SQL, which costs something every day"
  type        = bool
  default     = true
}
