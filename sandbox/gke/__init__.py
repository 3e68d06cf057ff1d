"""Stand in for GKE: its ClusterManager API, its tokens, and the nodes that its pools bring up."""
