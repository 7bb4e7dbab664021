"""Traces as other tools keep them: read from OTLP or Jaeger, and made into request paths again."""
