-- One row per request, from `spans`, the table that Jaeger itself writes into ClickHouse; clickhouse-breakdown.sql
-- reads it.
--
-- A request's times are on one span: the request's, or nginx's where no worker recorded it. Both have
-- `reqpath.total_ns`. A segment that is unknown is not there.
--
-- clickhouse-client --database jaeger --queries-file clickhouse-view-jaeger.sql

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
    start_time AS at,
    service_name AS service,
    resource_str_attributes.value[indexOf(resource_str_attributes.key, 'host.name')] AS host,
    if(has(str_attributes.key, 'http.route'),
        str_attributes.value[indexOf(str_attributes.key, 'http.route')],
        '(no route)') AS path,
    concat(str_attributes.value[indexOf(str_attributes.key, 'http.request.method')], ' ', path) AS route,
    int_attributes.value[indexOf(int_attributes.key, 'http.response.status_code')] AS status,
    int_attributes.value[indexOf(int_attributes.key, 'reqpath.total_ns')] AS total_ns,
    int_attributes.value[indexOf(int_attributes.key, 'reqpath.residual_ns')] AS residual_ns,
    -- [(key, ns)] of those that are known
    arrayFilter(
        pair -> has(segment_keys, pair.1),
        arrayZip(int_attributes.key, int_attributes.value)
    ) AS segments,
    -- Why the keep policy exported it
    str_attributes.value[indexOf(str_attributes.key, 'reqpath.kept')] AS kept,
    trace_id
FROM spans
WHERE has(int_attributes.key, 'reqpath.total_ns');
