package portbookv1

import _ "embed"

// OpenAPI is the OpenAPI 2.0 description of the REST calls.
//
//go:embed log.swagger.json
var OpenAPI []byte
