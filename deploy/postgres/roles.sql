-- A database for records on a PostgreSQL server of your own, once, as its administrator:
--
--   export QBTC_OWNER_PASSWORD=... QBTC_APP_PASSWORD=...
--   psql -f deploy/postgres/roles.sql
--
-- qbtc_owner makes and changes the tables and forgets what is old; qbtc_app is what gateways and
-- nodes use. After `qbtc db migrate` with the owner's URL, let the second in:
--
--   SELECT qbtc.allow('qbtc_app');
--
-- Supabase needs none of this: its postgres role owns the tables, its service_role is let in.

\set ON_ERROR_STOP on
\getenv owner_password QBTC_OWNER_PASSWORD
\getenv app_password QBTC_APP_PASSWORD
CREATE ROLE qbtc_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'owner_password';
CREATE ROLE qbtc_app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'app_password';
CREATE DATABASE qbtc_records OWNER qbtc_owner ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE qbtc_records FROM PUBLIC;
GRANT CONNECT ON DATABASE qbtc_records TO qbtc_app;
