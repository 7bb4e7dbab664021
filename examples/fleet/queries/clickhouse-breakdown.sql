-- Where a fleet's requests spend their time: four questions to the view that clickhouse-view-otel.sql or
-- clickhouse-view-jaeger.sql makes, so the same on both tables.
--
-- With the default keep policy there are spans of the errors, the slow requests and a steady few, and these are their
-- means: those of all requests are in Prometheus, or here when everything is kept (REQPATH_KEEP=all). With
-- `kept = 'steady'` they are of the first requests of each route and second, whatever these took.
--
-- clickhouse-client --database otel --param_service=shop --param_hours=1 --queries-file clickhouse-breakdown.sql

-- 1. Each segment: its mean over all requests, its share of the total, its p99 over the requests where it is known.
--    The segments' and the residual's means add up to the total's. The p99s do not.
WITH requests AS (
    SELECT * FROM reqpath_requests
    WHERE service IN ({service:String}, concat({service:String}, '-nginx'))
        AND at >= now() - toIntervalHour({hours:UInt32})
)
SELECT
    pair.1 AS segment,
    count() AS known,
    round(sum(pair.2) / 1e6 / (SELECT count() FROM requests), 3) AS mean_ms,
    round(sum(pair.2) / (SELECT sum(total_ns) FROM requests), 3) AS share,
    round(quantileTDigest(0.99)(pair.2) / 1e6, 3) AS p99_ms
FROM requests
ARRAY JOIN arrayConcat(segments, [('residual', residual_ns), ('total', total_ns)]) AS pair
GROUP BY segment
ORDER BY mean_ms DESC;

-- 2. What makes the slow ones slow: the mean of each segment among the slowest 1 % of a route, and among those
--    around its median.
WITH
    requests AS (
        SELECT * FROM reqpath_requests
        WHERE service IN ({service:String}, concat({service:String}, '-nginx'))
            AND at >= now() - toIntervalHour({hours:UInt32})
    ),
    bounds AS (SELECT route, quantiles(0.4, 0.6, 0.99)(total_ns) AS bounds_ns FROM requests GROUP BY route),
    slices AS (
        SELECT
            requests.route AS route,
            total_ns BETWEEN bounds_ns[1] AND bounds_ns[2] AS is_usual,
            total_ns >= bounds_ns[3] AS is_slow,
            arrayConcat(segments, [('residual', residual_ns), ('total', total_ns)]) AS pairs
        FROM requests
        INNER JOIN bounds ON requests.route = bounds.route
    ),
    sizes AS (SELECT route, countIf(is_usual) AS usual, countIf(is_slow) AS slow FROM slices GROUP BY route)
SELECT
    slices.route AS route,
    pair.1 AS segment,
    round(sumIf(pair.2, is_usual) / 1e6 / any(sizes.usual), 3) AS usual_ms,
    round(sumIf(pair.2, is_slow) / 1e6 / any(sizes.slow), 3) AS slow_ms
FROM slices
ARRAY JOIN pairs AS pair
INNER JOIN sizes ON slices.route = sizes.route
GROUP BY route, segment
ORDER BY route, slow_ms DESC;

-- 3. Hosts that differ: the mean of each tier by the app's host.
SELECT
    host,
    count() AS requests,
    round(avg(arraySum(pair -> if(startsWith(pair.1, 'reqpath.nginx.'), pair.2, 0), segments)) / 1e6, 3) AS nginx_ms,
    round(avg(arraySum(pair -> if(pair.1 = 'reqpath.queue_ns', pair.2, 0), segments)) / 1e6, 3) AS queue_ms,
    round(avg(arraySum(pair -> if(startsWith(pair.1, 'reqpath.uwsgi.'), pair.2, 0), segments)) / 1e6, 3) AS uwsgi_ms,
    round(avg(arraySum(pair -> if(startsWith(pair.1, 'reqpath.flask.'), pair.2, 0), segments)) / 1e6, 3) AS flask_ms,
    round(avg(arraySum(pair -> if(startsWith(pair.1, 'reqpath.mysql.'), pair.2, 0), segments)) / 1e6, 3) AS mysql_ms,
    round(avg(residual_ns) / 1e6, 3) AS residual_ms,
    round(avg(total_ns) / 1e6, 3) AS total_ms
FROM reqpath_requests
WHERE service IN ({service:String}, concat({service:String}, '-nginx'))
    AND at >= now() - toIntervalHour({hours:UInt32})
GROUP BY host
ORDER BY total_ms DESC;

-- 4. By minute: requests, errors, and the mean of each segment.
WITH
    requests AS (
        SELECT *, toStartOfMinute(at) AS minute FROM reqpath_requests
        WHERE service IN ({service:String}, concat({service:String}, '-nginx'))
            AND at >= now() - toIntervalHour({hours:UInt32})
    ),
    counts AS (SELECT minute, count() AS requests, countIf(status >= 500) AS errors FROM requests GROUP BY minute)
SELECT
    requests.minute AS minute,
    any(counts.requests) AS requests,
    any(counts.errors) AS errors,
    pair.1 AS segment,
    round(sum(pair.2) / 1e6 / any(counts.requests), 3) AS mean_ms
FROM requests
ARRAY JOIN arrayConcat(segments, [('residual', residual_ns), ('total', total_ns)]) AS pair
INNER JOIN counts ON requests.minute = counts.minute
GROUP BY minute, segment
ORDER BY minute, mean_ms DESC;
