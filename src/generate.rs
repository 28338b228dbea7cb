//! Files made from the code: the kinds, the catalogue of ClusterRoles and the plain manifests.
