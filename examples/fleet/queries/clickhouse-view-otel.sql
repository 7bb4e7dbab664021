-- One row per request, from `otel_traces`, the table that the OpenTelemetry Collector's clickhouse exporter writes;
-- clickhouse-breakdown.sql reads it.
--
-- A request's times are on one span: the request's, or nginx's where no worker recorded it. Both have
-- `reqpath.total_ns`. A segment that is unknown is not there.
--
-- clickhouse-client --database otel --queries-file clickhouse-view-otel.sql

CREATE OR REPLACE VIEW reqpath_requests AS
WITH
    [
        'reqpath.nginx.receive_ns', 'reqpath.nginx.local_ns', 'reqpath.nginx.upstream_ns',
        'reqpath.nginx.send_ns',
        'reqpath.queue_ns',
        'reqpath.uwsgi.read_ns', 'reqpath.uwsgi.gil_ns', 'reqpath.uwsgi.send_ns',
        'reqpath.flask.middleware_ns', 'reqpath.flask.framework_ns', 'reqpath.flask.view_ns',
        'reqpath.flask.template_ns',
        'reqpath.wsgi.app_ns',
        'reqpath.mysql.connect_ns', 'reqpath.mysql.query_ns', 'reqpath.mysql.fetch_ns',
        'reqpath.mysql.commit_ns'
    ] AS segment_keys
SELECT
    Timestamp AS at,
    ServiceName AS service,
    ResourceAttributes['host.name'] AS host,
    if(SpanAttributes['http.route'] = '', '(no route)', SpanAttributes['http.route']) AS path,
    concat(SpanAttributes['http.request.method'], ' ', path) AS route,
    toUInt16OrZero(SpanAttributes['http.response.status_code']) AS status,
    toInt64(SpanAttributes['reqpath.total_ns']) AS total_ns,
    toInt64OrZero(SpanAttributes['reqpath.residual_ns']) AS residual_ns,
    -- [(key, ns)] of those that are known
    arrayMap(
        key -> (key, toInt64(SpanAttributes[key])),
        arrayFilter(key -> mapContains(SpanAttributes, key), segment_keys)
    ) AS segments,
    -- Why the keep policy exported it
    SpanAttributes['reqpath.kept'] AS kept,
    TraceId AS trace_id
FROM otel_traces
WHERE mapContains(SpanAttributes, 'reqpath.total_ns');
